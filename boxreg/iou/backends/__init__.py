"""The backends of the IoU family; each is imported when it is first needed."""
