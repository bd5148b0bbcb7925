"""What goes with a merged model: measurements per layer, a page to look at, a model card."""
