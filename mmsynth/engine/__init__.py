"""What plugs into the mmengine runner."""
