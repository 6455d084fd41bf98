"""The optional wing of `optim` for weights that are spread over ranks (DTensors): the gate, and who the ranks are."""
