"""Data loading: annotation files, augmentation, and batches of person crops with their keypoints."""
