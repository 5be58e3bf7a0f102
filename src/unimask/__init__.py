"""A picture becomes segments: Mask2Former for panoptic, instance and semantic segmentation."""

__version__ = "0.1.0"
