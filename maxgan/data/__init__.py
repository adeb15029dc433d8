"""Sources of images, cutting them to size, and the endless stream of training batches."""
