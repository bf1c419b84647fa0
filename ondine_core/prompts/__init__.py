"""Everything that decides an answer's key: prompt template, output schema, task."""
