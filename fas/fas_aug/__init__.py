"""FAS-Aug with SARE: physics-based data synthesis for cross-domain face anti-spoofing."""
