"""The label formats of other tools, a file for each, with a reader into one neutral form and a writer from it.

`read_<format>(src, images)` takes the data set's folder and the folder with the images, where that is not in it, and
gives `labels.Labels`; what is wrong raises InputError with file and place. `write_<format>(labels, out)` writes into a
folder that is there, without the images. Where reading that back would change pixels, it returns how many, by the names
of the images that have any.
"""
