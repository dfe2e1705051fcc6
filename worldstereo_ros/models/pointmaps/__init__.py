"""Point maps of a video: a network that refines a geometric prior, or that needs none.

    pointmaps = load_pointmap_model(folder, image_autoencoder)
    prediction = pointmaps.refine(images, intrinsics, prior)

`types` has what goes in and comes out, `geometry` the conventions, `prior` the dense prior from sparse anchors, `sweep`
the matching of frames around it, `autoencoder` and `network` the networks, `model` both together with the sampler.
"""
