"""Read checkpoints from the Hub and from folders, in the formats of transformers, timm, PEFT and Google."""
