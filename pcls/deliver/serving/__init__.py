"""A classifier behind HTTP: limits, batches, the application, the page, and the process that ends in good order."""
