"""Object detection: the scenes, the boxes and their scores, and the network that is slid over a picture."""
