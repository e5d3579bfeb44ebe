"""The mean and standard deviation that the network's input is normalised by, RGB in 0..1 (ImageNet's)."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
