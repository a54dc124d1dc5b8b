"""Authentication and authorization: who may come in, and what each may do."""
