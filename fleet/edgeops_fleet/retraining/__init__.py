"""From drift to the next training run: samples, labels, harm, and one request a cause."""
