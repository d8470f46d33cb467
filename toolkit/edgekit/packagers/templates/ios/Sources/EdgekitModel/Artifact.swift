import CryptoKit
import Foundation

/// What is wrong with the model's files, and what to do.
public struct ArtifactError: LocalizedError {
    public let errorDescription: String?

    init(_ text: String) {
        errorDescription = text
    }
}

/// What a loader needs of edgekit.json.
struct Manifest: Decodable {
    struct File: Decodable {
        let bytes: Int
        let sha256: String
    }

    struct Encode: Decodable {
        let text: String
        let ids: [Int]
    }

    struct Turn: Decodable {
        let role: String
        let content: String
    }

    struct Chat: Decodable {
        let messages: [Turn]
        let rendered: String
    }

    struct Conformance: Decodable {
        let encode: [Encode]
        let chat: [Chat]
    }

    let format: String
    let version: Int
    let conformance: Conformance
    let files: [String: File]
}

/// The directory of the model in the app.
struct Artifact {
    let directory: URL
    let manifest: Manifest

    /// Reads the manifest and compares every file with its sha256.
    init(directory: URL) throws {
        let raw = try Data(contentsOf: directory.appending(path: "edgekit.json"))
        let manifest = try JSONDecoder().decode(Manifest.self, from: raw)
        guard manifest.format == "edgekit", manifest.version == 1 else {
            throw ArtifactError("edgekit.json is no manifest of version 1; make the package again")
        }
        for (name, file) in manifest.files {
            let found = try digest(of: directory.appending(path: name))
            guard found == file.sha256 else {
                throw ArtifactError("\(name) is not what was packaged: its sha256 differs; install the app again")
            }
        }
        self.directory = directory
        self.manifest = manifest
    }
}

/// In pieces: weights may be larger than what an app may hold.
private func digest(of file: URL) throws -> String {
    let handle = try FileHandle(forReadingFrom: file)
    defer { try? handle.close() }
    var sha = SHA256()
    while let piece = try handle.read(upToCount: 1 << 20), !piece.isEmpty {
        sha.update(data: piece)
    }
    return sha.finalize().map { String(format: "%02x", $0) }.joined()
}
