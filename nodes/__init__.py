"""ComfyUI nodes: a schema and one call each. The only place that knows ComfyUI."""
