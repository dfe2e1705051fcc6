"""Many robots ask one computer: `imagine` and `score_paths` over HTTP, the memories of each robot kept apart.

    HTTP ──► app (token, sizes) ──► RobotService (messages) ──► RobotSessions (one WorldModel a robot, queues)
    robot ──► ServedWorld, a WorldModel that imagines on the server, and by itself where that fails

Nothing here needs Ray but `ray_app`: the rest runs in one process, and in tests without a socket.
"""
