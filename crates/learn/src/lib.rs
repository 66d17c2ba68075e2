//! Learn (g): trains a network and gives the model artifact K.
