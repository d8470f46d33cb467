"""Profiling on a device elsewhere: over ssh, over adb, or in Qualcomm AI Hub (docs/remote.md)."""
