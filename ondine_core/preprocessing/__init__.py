"""What happens to a row before it is rendered: cleaning, truncation, PII replacement."""
