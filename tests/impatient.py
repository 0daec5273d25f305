"""`dcgan-train` with heartbeats that are missed after IMPATIENT seconds: `-m tests.impatient`."""

import os

from dcgan import heartbeats, train

heartbeats.LIMIT = float(os.environ["IMPATIENT"])
heartbeats.BEAT = heartbeats.LOOK = heartbeats.LIMIT / 12
heartbeats.MISSED = heartbeats.LIMIT / 4

if __name__ == "__main__":
    train.main()
