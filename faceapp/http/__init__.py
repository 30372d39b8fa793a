"""What the web tier is made of: uploads, problem documents, the classic contract, the API and the page."""
