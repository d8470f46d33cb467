package edgekit.model

import android.content.Context
import org.json.JSONObject
import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import java.io.RandomAccessFile
import java.net.HttpURLConnection
import java.net.URL
import java.security.MessageDigest

/** A piece of a file of the artifact, as files.json lists it. */
internal data class Part(val path: String, val bytes: Long, val sha256: String)

/** A file of the artifact: its parts in their order. */
internal data class Entry(val path: String, val parts: List<Part>)

/** Where the model's files could not be had: the message says which and what to do. */
class ModelFilesException(message: String, cause: Throwable? = null) : IOException(message, cause)

/**
 * The artifact in the app's own storage. What is not among the app's assets is downloaded once; a download that was broken off, by
 * the user, the network or the system, goes on at its last byte. Every part is compared with its sha256 before the next one.
 *
 * [address]: of the folder "artifact" on your server, https, ending in a slash; null where all is in the app.
 */
class ModelFiles(private val context: Context, private val address: String? = null) {
    private val list = context.assets.open("artifact/files.json").use { it.readBytes() }
    private val root = File(context.noBackupFilesDir, "edgekit")
    private val ready = File(root, hex(MessageDigest.getInstance("SHA-256").digest(list)).take(16))
    private val entries = parse(String(list, Charsets.UTF_8))

    /** Bytes of all files. */
    val size: Long = entries.sumOf { entry -> entry.parts.sumOf { it.bytes } }

    /** The directory of the artifact, complete; slow at the first run, so never call it on the main thread. */
    @Synchronized
    @Throws(ModelFilesException::class)
    fun prepare(progress: (done: Long, total: Long) -> Unit = { _, _ -> }): File {
        if (ready.isDirectory) return ready
        val staging = File(root, "${ready.name}.partial")
        if (root.usableSpaceOrMake() < size) {
            throw ModelFilesException("the model needs ${size / 1_000_000} MB of storage; free some and start again")
        }
        var done = 0L
        for (entry in entries) {
            val before = done
            complete(entry, File(staging, entry.path)) { progress(before + it, size) }
            done += entry.parts.sumOf { it.bytes }
        }
        // One step: a directory under this name is whole.
        if (!staging.renameTo(ready)) throw ModelFilesException("$staging cannot be renamed; start again")
        root.listFiles()?.filter { it != ready }?.forEach { it.deleteRecursively() }
        return ready
    }

    private fun File.usableSpaceOrMake(): Long {
        mkdirs()
        val held = walkTopDown().filter { it.isFile }.sumOf { it.length() }
        return usableSpace + held
    }

    private fun complete(entry: Entry, file: File, progress: (Long) -> Unit) {
        file.parentFile?.mkdirs()
        RandomAccessFile(file, "rw").use { out ->
            var start = 0L
            for (part in entry.parts) {
                val end = start + part.bytes
                if (out.length() < end || !matches(out, start, part)) {
                    if (out.length() > end) out.setLength(start)
                    try {
                        fetch(part, out, start, progress)
                    } finally {
                        out.fd.sync()
                    }
                    if (!matches(out, start, part)) {
                        out.setLength(start)
                        throw ModelFilesException("${part.path} is not what was packaged: its sha256 differs; put the right file on the server")
                    }
                }
                start = end
                progress(start)
            }
            out.setLength(start)
        }
    }

    /** Appends what is missing of a part, from the app where it is there, else from the server. */
    private fun fetch(part: Part, out: RandomAccessFile, start: Long, progress: (Long) -> Unit) {
        val have = maxOf(0L, out.length() - start).let { if (it < part.bytes) it else 0L }
        out.setLength(start + have)
        out.seek(start + have)
        val asset = try {
            context.assets.open("artifact/${part.path}")
        } catch (_: FileNotFoundException) {
            null
        }
        if (asset != null) {
            asset.use { input ->
                var skipped = 0L
                while (skipped < have) {
                    val count = input.skip(have - skipped)
                    if (count <= 0) throw ModelFilesException("artifact/${part.path} of the app is cut short; install the app again")
                    skipped += count
                }
                copy(input, out, start + part.bytes, progress)
            }
        } else {
            download(part, out, start, have, progress)
        }
    }

    private fun download(part: Part, out: RandomAccessFile, start: Long, have: Long, progress: (Long) -> Unit) {
        val from = address ?: throw ModelFilesException("${part.path} is not in the app, and no address was given to download it from")
        val connection = URL(from + part.path).openConnection() as HttpURLConnection
        try {
            connection.connectTimeout = TIMEOUT
            connection.readTimeout = TIMEOUT
            connection.setRequestProperty("Accept-Encoding", "identity")
            if (have > 0) connection.setRequestProperty("Range", "bytes=$have-")
            when (val code = connection.responseCode) {
                HttpURLConnection.HTTP_PARTIAL -> if (have == 0L) throw ModelFilesException("$from${part.path}: a part was sent that nobody asked for")
                HttpURLConnection.HTTP_OK -> out.setLength(start).also { out.seek(start) }
                else -> throw ModelFilesException("$from${part.path} cannot be downloaded: HTTP $code")
            }
            connection.inputStream.use { copy(it, out, start + part.bytes, progress) }
        } catch (error: ModelFilesException) {
            throw error
        } catch (error: IOException) {
            throw ModelFilesException("$from${part.path}: ${error.message}; what arrived is kept, start again to go on", error)
        } finally {
            connection.disconnect()
        }
    }

    /** Until [end] in [out] and no further, whatever is sent. */
    private fun copy(input: InputStream, out: RandomAccessFile, end: Long, progress: (Long) -> Unit) {
        val buffer = ByteArray(BUFFER)
        while (out.filePointer < end) {
            val count = input.read(buffer, 0, minOf(buffer.size.toLong(), end - out.filePointer).toInt())
            if (count < 0) throw IOException("it ended early")
            out.write(buffer, 0, count)
            progress(out.filePointer)
        }
    }

    private fun matches(file: RandomAccessFile, start: Long, part: Part): Boolean {
        val digest = MessageDigest.getInstance("SHA-256")
        val buffer = ByteArray(BUFFER)
        file.seek(start)
        var left = part.bytes
        while (left > 0) {
            val count = file.read(buffer, 0, minOf(buffer.size.toLong(), left).toInt())
            if (count < 0) return false
            digest.update(buffer, 0, count)
            left -= count
        }
        return hex(digest.digest()) == part.sha256
    }

    private companion object {
        const val TIMEOUT = 30_000
        const val BUFFER = 1 shl 16

        fun hex(bytes: ByteArray): String = bytes.joinToString("") { "%02x".format(it) }

        fun parse(text: String): List<Entry> {
            val files = JSONObject(text).getJSONArray("files")
            return (0 until files.length()).map { i ->
                val file = files.getJSONObject(i)
                val parts = file.getJSONArray("parts")
                Entry(
                    file.getString("path"),
                    (0 until parts.length()).map { j ->
                        val part = parts.getJSONObject(j)
                        Part(part.getString("path"), part.getLong("bytes"), part.getString("sha256"))
                    },
                )
            }
        }
    }
}
