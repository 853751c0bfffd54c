"""Write the embeddings of many images to a file: resumable, in bounded memory."""
