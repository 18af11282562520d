"""`tiny`: a small text-conditioned convolutional network, trained on `scenes/train`; its weights are included."""
