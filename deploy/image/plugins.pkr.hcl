# What `packer init` fetches. A file of its own, since Debian's Packer (1.6) has this plugin built in and does not know
# the block.

packer {
  required_plugins {
    amazon = {
      version = ">= 1.3.0, < 2.0.0"
      source  = "github.com/hashicorp/amazon"
    }
  }
}
