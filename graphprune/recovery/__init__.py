"""Recovery without training: predict what removal costs, and solve the layers that are left anew."""
