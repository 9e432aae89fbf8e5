"""Object detection: scenes, boxes and their scores, and a network that slides over a picture."""
