"""The settings of a process, and boto3's clients with them."""

from faceapp.config.variables import MIB, ModelOptions, PhotoLimits, Rule, Settings, settings, strange

__all__ = ["MIB", "ModelOptions", "PhotoLimits", "Rule", "Settings", "settings", "strange"]
