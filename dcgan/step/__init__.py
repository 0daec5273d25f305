"""One update of D and one of G."""

STATISTICS = ("loss_d", "loss_g", "d_x", "d_gz1", "d_gz2")
"""What a step returns, in this order.

- `loss_d`: D's loss, -log D(x) - log(1 - D(G(z))), each term averaged over its batch.
- `loss_g`: G's loss, -log D(G(z)) after D's update, averaged.
- `d_x`: mean of D(x) over the real batch, a probability in [0, 1].
- `d_gz1`, `d_gz2`: mean of D(G(z)) over the fake batch, before and after D's update.
"""
