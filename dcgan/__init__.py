"""From batches to generated pictures: the nets, the step, the loop around it."""
