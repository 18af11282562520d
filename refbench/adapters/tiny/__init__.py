"""`tiny`: a small text-conditioned convolutional network, trained on `scenes/train`, shipped with its weights."""
