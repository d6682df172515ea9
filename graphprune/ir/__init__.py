"""The only place that touches protobuf and graphsurgeon: files, coupling, surgery, cost."""
