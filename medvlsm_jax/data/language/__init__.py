"""The paper's subject: attributes, the sentences made of them, and their tokens."""
