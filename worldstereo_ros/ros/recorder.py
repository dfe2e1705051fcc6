"""Records what the node and a client publish into an MCAP bag, without rosbag2."""
