"""Label formats of other tools, one file for each: a reader into the neutral `labels.Labels` and a writer from it.

`read_<format>(src, images)` takes the folder of the dataset and the folder with the images, None if they are inside.
It raises InputError with file and place for the first error. `write_<format>(labels, out)` writes into an existing
folder, without the images. Where reading the result back would change pixels, it returns the number of changed pixels
by image.
"""
