"""What `mvlm prepare` makes from nothing, and from the files that a collection is published as."""

DRAWN = ("shapes", "shapes_vqa", "shapes_nlvr2", "shapes_ve")
PUBLISHED = ("flickr8k", "flickr30k", "coco", "cc3m", "sbu", "visual_genome", "pairs4m")
