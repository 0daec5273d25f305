"""`make gpu-report`: what a GPU shows of this project, in two files that can be sent."""
