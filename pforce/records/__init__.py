"""Records of finished work in the storage, and the identities that name them. Imports neither Ray nor MLflow."""
