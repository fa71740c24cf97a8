"""Training on a Kubernetes cluster with the JobSet controller."""
