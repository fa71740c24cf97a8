"""Public face anti-spoofing datasets: reading their official trees, cross-domain protocols, cropping into records."""
