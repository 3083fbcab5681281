"""Label formats of other tools, one file for each: a reader into the neutral `labels.Labels` and a writer from it.

`read_<format>(src, images)` takes the folder of the dataset and the folder with the images, None if they are inside.
`write_<format>(labels, out)` writes into an existing folder, without images; it may return the changed pixels by image.
"""
