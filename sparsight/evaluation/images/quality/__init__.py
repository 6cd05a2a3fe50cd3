"""Quality of images without a reference: by classifiers, and by a model of perceived quality."""
