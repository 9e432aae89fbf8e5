"""Object detection: scenes, boxes and their scores, and a network that is slid over a picture."""
