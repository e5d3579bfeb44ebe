"""Mean and standard deviation per channel (RGB, values in 0..1) that normalize the network's input: ImageNet's."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
