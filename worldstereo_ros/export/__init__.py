"""Memory and models in forms that other software opens."""
