"""What the experiments of the family share: specialists of changed images, merged and measured."""
