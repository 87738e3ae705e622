"""What every kernel shares: targets, compile reports, roofline, launch checks and records."""
