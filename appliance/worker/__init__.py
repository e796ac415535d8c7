"""Entry points of the worker processes, which import torch. Runners start them by argv; no other code imports them."""
