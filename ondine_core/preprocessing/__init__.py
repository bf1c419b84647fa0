"""Changes rows before they are rendered: cleaning, truncation, replacement of personal data, reading of media."""
