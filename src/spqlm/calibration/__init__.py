"""What the stages know of a model on text: activations, gradients, and the text itself."""
