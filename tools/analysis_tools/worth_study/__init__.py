"""What synthetic images are worth: a study of segmentors trained with and without them."""
